"""What the extra `export` brings, where it is missing."""


def missing(format_name: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The sentence for a format whose library is missing."""
    return ModuleNotFoundError(
        f"format={format_name!r} needs {error.name}, which comes with: pip install "
        "'zosam_jax[export]'"
    )
