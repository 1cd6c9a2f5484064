"""Codes and scales of bitsandbytes: https://github.com/bitsandbytes-foundation/bitsandbytes. Needs bitsandbytes (and
torch) only for the live tests; the fixed answers were made with version 0.50.2, on a CPU."""

import hashlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import qkernels as qk
from qkernels import layouts

TABLES = {
    "NF4": (
        "-0x1.0000000p+0 -0x1.6473620p-1 -0x1.0cd6600p-1 -0x1.9465400p-2 -0x1.23449a0p-2 -0x1.7a6a7e0p-3 "
        "-0x1.74f0e20p-4 0x0.0p+0 0x1.45f5fe0p-4 0x1.4995c60p-3 0x1.f809ba0p-3 0x1.5a06740p-2 0x1.c349700p-2 "
        "0x1.200f560p-1 0x1.7227660p-1 0x1.0000000p+0"
    ),
    "FP4": (
        "0x0.0p+0 0x1.5555560p-8 0x1.5555560p-1 0x1.0000000p+0 0x1.5555560p-2 0x1.0000000p-1 0x1.5555560p-3 "
        "0x1.0000000p-2 0x0.0p+0 -0x1.5555560p-8 -0x1.5555560p-1 -0x1.0000000p+0 -0x1.5555560p-2 -0x1.0000000p-1 "
        "-0x1.5555560p-3 -0x1.0000000p-2"
    ),
}
# Codes of golden_values(), that of the first of two values in the high bits of a byte.
CODES = {
    "NF4": (
        "88418eb8e287244e259b765ea86d6575ae8446586a66f05777432bb2753368a53cac4ab67372b4329a49a46b95ab23547a4c84c89945"
        "c64951b801268c9bb472ed8b41892115ad5384f89d35ab1939565a8d221d742726633b3b5b045b1a554ca48a838572d16e3691cd252b"
        "922e2552625811d7dedbf327f13a56de83b549937b7c99ddaaa83b52bdb5c6624ad91cdab337dc34765552bd8f9ba88b97eb958a8249"
        "92485d247351098ac5885f93969e8d93c9657a29b9324d458389daadd306821946ac176a5c39b2974ab564f95b546bc2398b8c865585"
        "769d939c5b2c6a288b34839dd08fa7564842e2033f7152721d8087894be47a6ace289cde5ea74cf7783a22b6926e8c76a77c4d498b7e"
        "12d97c6a28d215665d1dcb677ba3f86d1eb5267c665b116e63dad4c24524b03f355fd766d2343dd8986479831ee77b651474893662a7"
        "739c566624b31d5b258ba89ad5a84593b02496734c42375977b56674ba3292e9b48587d489868dcb208e88fd6488d330527b720bcb34"
        "41b7abb369ece009ab5c13c113031e6c02b595973685bc49d845127e4077d47e18be4654371199d0fcc236dbb13e64b4e5092adddc65"
        "b821375a63d5c6a8c2c9aa98133ce4857b4a4788a7c9761c774c4223bbc6a257979912714dfdbca5843fd74a9285a7584077bd302cad"
        "1524054cb4bbad83558d9a1e43b9"
    ),
    "FP4": (
        "16ca62462d69dff2de641ee276e5ef9e726ff9e1e79e3be191fda44d9edce17ec575c7499d9a4cdd67c67c946e74ddef96f56c5166fe"
        "49c6ea41bad965644f1d2264ca16dbaf72ed1c3165de74a6d6eee765ada29fd9d9edc4d4e4bcf4a4fff57f171d1e9d2ae2ce6a45ded4"
        "6dd2deededf6aa5952243cd13ac7ee226d4ff66c949566527771c4ed454e59edf726a4574cc954cf1eefed456364761469246e171df6"
        "6df1f2df1ceab6175e16f36c6e62126c569e97d646ddf5ff1d1627725cb91da6f974a197e4c64d69f74eec36f4ff945dd664151efe1f"
        "1e656d65e4d497d614cf1c622b6378e9c6fd2dbdd39aed1aa26b1166f42f17e753d16552e271f43911c7dd496d9214197994f5c61412"
        "ad5695e7d12dae9ee5a25499947c36e2a24ede15eef4aae2ed575c5dcedc4bc3cee329ee5dcfc226619f961ca229149eac9c66ceed79"
        "1d65e9e9dc4ca2f4de1471672e71ce6d4bdf6e1df5fad9e6914e9e9f47dd6d264c6e112f16191554db6211359f115cdbed141ab454cf"
        "ca49744c96252bb674f4ac5aadbca2e5bd4f6e69ce1f45f656ffad12fb195f93a142cefcc9ab665b355dc9544ad39c4f2eb6a75555ef"
        "46dac1f79c5f4e714d466761acc52f1e94c7f111795619a589c4cdad445e7af16166ad1ac235457e1fc329c46d1e71e6cb1142cbd575"
        "aedcbef44f44751dee6567a2fc46"
    ),
}


def golden_values():
    """1,000 about normal values, any machine's: the last block of 64 has 40."""
    digests = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(250))
    return (np.frombuffer(digests, "<u2").reshape(1000, 4).sum(axis=1, dtype=np.int64) / 2**15 - 4).astype(np.float32)


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    codebook = getattr(qk, name)
    assert [float(v) for v in codebook.levels] == [float.fromhex(v) for v in TABLES[name].split()]
    assert codebook.block_size == 64 and codebook is getattr(qk, name)


def unpacked(data, name):
    """Codes, two a byte, of which FP4's code 8, another zero, becomes 0, the lower of equal levels."""
    codes = np.stack([data >> 4, data & 15], axis=1).reshape(-1)
    return np.where((name == "FP4") & (codes == 8), 0, codes)


@pytest.mark.parametrize("name", TABLES)
def test_golden(name, isas):
    x = golden_values()
    codes = unpacked(np.frombuffer(bytes.fromhex("".join(CODES[name])), np.uint8), name)
    for isa in isas():
        got, scales = qk.encode(x, getattr(qk, name))
        assert_array_equal(got, codes, err_msg=isa)
        assert_array_equal(scales, np.abs(np.pad(x, (0, 24))).reshape(-1, 64).max(axis=1))


def at_ties(values, levels):
    """Whether a value is a midpoint of levels rounded to float32."""
    ordered = np.sort(levels)
    return np.isin(values, (ordered[1:] + ordered[:-1]) / np.float32(2))


@pytest.mark.parametrize("name", TABLES)
def test_live(name):
    """Codes differ only at ties: bitsandbytes compares with midpoints rounded to float32, and prefers lower levels."""
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    codebook, n = getattr(qk, name), 1 << 22
    x = np.random.default_rng(0).standard_normal(n, np.float32)
    packed, state = functional.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type=name.lower())
    theirs = unpacked(packed.numpy().reshape(-1), name)
    codes, scales = qk.encode(x, codebook)
    assert_array_equal(scales, state.absmax.numpy())
    normal = x.reshape(-1, 64) * (1 / scales)[:, None]
    different = codes != theirs
    assert np.all(at_ties(normal.reshape(-1)[different], codebook.levels))
    assert different.sum() <= 4, different.sum()
    assert_array_equal(
        qk.decode(theirs, codebook, scales), functional.dequantize_4bit(packed, state).numpy().reshape(-1)
    )


def test_live_8_bit():
    """Its 8-bit blocks: the same scales, and codes that differ as rarely as its shorter search does."""
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    levels = functional.create_dynamic_map().numpy()
    x = np.random.default_rng(0).standard_normal(1 << 18, np.float32)
    theirs, state = functional.quantize_blockwise(torch.from_numpy(x), blocksize=256)
    codebook = qk.Codebook(levels, block_size=256)
    codes, scales = qk.encode(x, codebook)
    assert_array_equal(scales, state.absmax.numpy())
    assert np.mean(codes != theirs.numpy()) < 0.01
    assert_array_equal(
        qk.decode(theirs.numpy(), codebook, scales), functional.dequantize_blockwise(theirs, state).numpy()
    )


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_live_checkpoints(name, nested):
    """Its tensors are read bit for bit, come back as they were, and it reads ours."""
    torch, functional = pytest.importorskip("torch"), pytest.importorskip("bitsandbytes.functional")
    w = torch.from_numpy(np.random.default_rng(1).standard_normal((96, 448), np.float32))
    options = dict(blocksize=64, quant_type=name.lower(), compress_statistics=nested)
    packed, state = functional.quantize_4bit(w.bfloat16(), **options)
    theirs = {"weight": packed} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    theirs = {key: value.numpy() for key, value in theirs.items()}
    codes, book, scales = layouts.from_bitsandbytes(theirs)
    state.dtype = torch.float32
    assert_array_equal(qk.decode(codes, book, scales), functional.dequantize_4bit(packed, state).numpy().T)
    kept = layouts.to_bitsandbytes(codes, book, scales, nested=theirs if nested else False, dtype="bfloat16")
    assert kept.keys() == theirs.keys()
    for key, value in theirs.items():
        assert_array_equal(kept[key], value, err_msg=key, strict=True)
    ours = layouts.to_bitsandbytes(codes, book, scales, nested=nested)
    if nested:
        assert_array_equal(ours["weight.nested_quant_map"], theirs["weight.nested_quant_map"])
    tensors = {key.removeprefix("weight."): torch.from_numpy(value) for key, value in ours.items() if key != "weight"}
    again = functional.QuantState.from_dict(tensors, device=torch.device("cpu"))
    values = functional.dequantize_4bit(torch.from_numpy(ours["weight"]), again).numpy()
    codes, book, scales = layouts.from_bitsandbytes(ours)
    assert_array_equal(qk.decode(codes, book, scales), values.T)
