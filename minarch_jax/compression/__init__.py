"""Compression of trained packs: what is asked, the programs, running them."""
