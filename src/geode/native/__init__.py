"""The decoder on the CPU: C++ kernels over weights in their own bits. No framework is imported here."""
