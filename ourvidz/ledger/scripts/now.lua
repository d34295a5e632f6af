-- Read the ledger's time.
-- Arguments: none.
-- Keys: clock.
-- Returns: Unix seconds.
-- Events: none.
return timestamp(now)
