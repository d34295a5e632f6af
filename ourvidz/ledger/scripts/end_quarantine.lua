-- Put a quarantined job back into the indexes, or forget one whose record is gone.
-- Arguments: id.
-- Keys: job, quarantine, quarantine_reasons, queued, leases, finished, rows, due.
-- Returns: 1 for a job that is back, 0 for one that is gone.
-- Events: none.
local id = unpack(ARGV, 4)

redis.call('ZREM', key('quarantine'), id)
redis.call('HDEL', key('quarantine_reasons'), id)
local job = read_record(id)
schedule_job(id)
if not job then return 0 end
index_job(id, job)
return 1
