"""The kernels for CUDA, one file each, named after the file with their torch version.

Imported only where they run: Triton decides on import whether its interpreter is used, and need
not be installed elsewhere. A file has the floor of its kernel (operations, bytes), its block sizes
as plain data chosen by shape, the launcher and the kernel. Nothing is tuned at serving time.
"""
