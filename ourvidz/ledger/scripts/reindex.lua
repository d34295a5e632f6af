-- Correct the place of a job that was found in an index to which it does not belong: its record is gone, or has
-- another status.
-- Arguments: id, index.
-- Keys: the index, job, queued, leases, finished.
-- Returns: 1, or 0 when it belongs there after all.
-- Events: none.
local id, index = unpack(ARGV, 4)

redis.call('ZREM', key(index), id)
local job = read_record(id)
if job then index_job(id, job) end
return redis.call('ZSCORE', key(index), id) and 0 or 1
