"""`python -m zosam_jax` is `zosam`."""

from zosam_jax.cli import main

main()
