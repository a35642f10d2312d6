"""The page for browsers, against Python."""
