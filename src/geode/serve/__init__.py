"""Models behind the APIs that applications speak, and a page. How answers are computed is `engine`'s to know."""
