"""The kinds of extension, one file each."""
