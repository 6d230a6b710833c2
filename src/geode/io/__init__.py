"""Bytes on disk <-> named arrays, one file for each format; what the names mean is not known here."""
