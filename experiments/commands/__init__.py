"""The commands of `circuits`, one file each; torch is imported only when one runs."""
