"""A node for tests: real container runtimes on sockets, folders and cgroups of the test's own.

Whatever runs here is started, and in the end removed, by the test that wants it. Nothing touches a runtime that the
machine may have.
"""
