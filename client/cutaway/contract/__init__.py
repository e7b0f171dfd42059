"""The contract between SDK and server: limits, options, errors, and the checks of a file's header.

The only part of this package that the server imports: nothing here needs more than the standard library.
"""
