"""The Lua scripts of the stored keys, one file a verb."""
