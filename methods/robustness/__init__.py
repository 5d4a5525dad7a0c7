"""What protections of a picture are worth: measured, told in words, drawn as a sheet."""
