"""What pictures are measured by, one metric a file: of pairs (`image`, `lpips`), of sets (`distribution`), of one
picture (`brisque`, `clip_iqa`), of faces.
"""
