"""What is retrained of a compressed pack, and the rows its results make."""
