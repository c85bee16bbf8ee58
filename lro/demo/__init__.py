"""The story that `lro demo` tells: real work on a real directory tree, over real HTTP."""
