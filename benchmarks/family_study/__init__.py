"""The accuracy study of the SAM family; `__main__` describes it."""
