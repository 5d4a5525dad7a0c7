"""Face-editing generators behind one small interface, for the defences and the patches that are tried on them."""
