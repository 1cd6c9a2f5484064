"""Put layers of packed weights in the place of a model's own."""

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch

from .._checks import is_a, shown
from ._modules import Conv2d, Linear

LAYERS = {torch.nn.Linear: Linear, torch.nn.Conv2d: Conv2d}


def quantize_module(model, recipe="int8", *, inplace=False):
    """Return a model whose layers of `torch.nn.Linear` and `torch.nn.Conv2d` have packed weights.

    Parameters
    ----------
    model : torch.nn.Module
        Layers of just these types are replaced; those of subclasses, as the one in `torch.nn.MultiheadAttention`, are
        not, since their owners read their weights.
    recipe : mapping or function, or what to make of all layers
        What to make of a layer is what `from_float` takes for `weights`, or a dict of its arguments, or None, which
        leaves the layer as it is. A mapping has these by the name of a layer, in which ``*`` and ``?`` are as in names
        of files, or by its type; the first that matches counts, and a layer that none matches is left. A layer of
        several names is matched by each. A function is called with each layer's first name and the layer, and returns
        it. (A dict of arguments for all layers has the key ``*``.)
    inplace : bool
        Whether layers are replaced in the model itself. Else it stays as it is, and what is not replaced is copied.
        What else refers to a replaced layer, an attribute that is no module or a list, say, still has the float one.

    Returns
    -------
    torch.nn.Module
        The model, or the copy. (Or one layer, if the model is one.)

    Raises
    ------
    TypeError, ValueError
        For a layer that cannot be made, or has hooks or a `forward` of its own, which would be lost; the message has
        its name, and no layer has been replaced. For a name or type that matches no layer.

    Examples
    --------
    >>> import torch
    >>> from qkernels.torch import quantize_module
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> quantize_module(model, {"2": None, torch.nn.Linear: {"weights": "uint4", "method": "mse"}})
    Sequential(
      (0): Linear(
        in_features=64, out_features=32, bias=True
        (weight): PackedWeight(uint4, block_size=32)
      )
      (1): ReLU()
      (2): Linear(in_features=32, out_features=2, bias=True)
    )
    """
    if not is_a(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    layers = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if type(layer) in LAYERS:
            layers.setdefault(layer, []).append(name)
    wishes = {layer: _wish(recipe, names, layer) for layer, names in layers.items()}
    if is_a(recipe, Mapping):
        _refuse_strangers(recipe, layers)
    made = {layer: _made(layers[layer][0], layer, wish) for layer, wish in wishes.items() if wish is not None}
    if not inplace:
        return copy.deepcopy(model, {id(layer): packed for layer, packed in made.items()})
    for owner in [*model.modules()]:
        for name, child in [*owner._modules.items()]:  # which has a child of two names twice
            if child in made:
                setattr(owner, name, made[child])
    return made.get(model, model)


def _wish(recipe, names, layer):
    """Return what a recipe wants to make of a layer."""
    if is_a(recipe, Mapping):
        return next((wish for key, wish in recipe.items() if _matches(key, names, layer)), None)
    return recipe(names[0], layer) if callable(recipe) and not isinstance(recipe, type) else recipe


def _matches(key, names, layer):
    if isinstance(key, type):
        return isinstance(layer, key)
    if not is_a(key, str):
        raise TypeError(f"recipe must have names and types as keys, got {shown(key)}")
    return any(key == name or fnmatchcase(name, key) for name in names)


def _refuse_strangers(recipe, layers):
    for key in recipe:
        if not any(_matches(key, names, layer) for layer, names in layers.items()):
            raise ValueError(f"recipe must have names and types of layers of the model, got {shown(key)}")


def _refuse_additions(name, layer):
    """Raise for what a layer has beside its weights, which would be lost: hooks, or another `forward`."""
    found = [key for key, value in vars(layer).items() if key == "forward" or key.endswith("_hooks") and value]
    if "weight" not in layer._parameters:  # hooks or others compute it
        found.append("a weight that is no parameter")
    if found:
        raise ValueError(f"{name or 'model'}: layer must be plain, got {', '.join(found)}; None leaves it as it is")


def _made(name, layer, wish):
    options = wish if is_a(wish, dict) else {"weights": wish}
    _refuse_additions(name, layer)
    try:
        return LAYERS[type(layer)].from_float(layer, **options).train(layer.training)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError  # others may want more than a text
        raise kind(f"{name or 'model'}: {error}") from error
