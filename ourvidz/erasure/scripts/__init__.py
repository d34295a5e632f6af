"""The Lua scripts of erasures."""
