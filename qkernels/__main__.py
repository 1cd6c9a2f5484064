"""``python -m qkernels`` tells what this build is and what it uses."""

from .config import show_config

if __name__ == "__main__":
    show_config()
