-- Take a job that cannot be read out of an index, or note that it still cannot be read.
-- Arguments: id, index, reason.
-- Keys: the index, quarantine, quarantine_reasons.
-- Returns: 1.
-- Events: none.
local id, index, reason = unpack(ARGV, 4)

quarantine_job(id, index, reason)
return 1
