"""Names and versions of the own objects, and the directory that lists them."""
