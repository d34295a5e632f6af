-- Find the first jobs of a queue that may start now, in the order in which they will start.
-- Arguments: queue, limit.
-- Keys: queued, job, doc.
-- Returns: for each { id, the record, the job document or '' }.
-- Events: none.
local queue, limit = unpack(ARGV, 4)
-- Jobs that wait for a retry, or whose cancellation is under way, may be in front.
local SCANNED_BEYOND = 32

local found = {}
for _, id in ipairs(redis.call('ZRANGE', key('queued', queue), 0, limit - 1 + SCANNED_BEYOND)) do
  local job = redis.pcall('HMGET', key('job', id), 'status', 'cancel', 'due_at')
  if job[1] == 'queued' and not job[2] and (tonumber(job[3]) or 0) <= now then
    local document = redis.pcall('GET', key('doc', id))
    found[#found + 1] = { id, flat_record(id), type(document) == 'string' and document or '' }
    if #found >= tonumber(limit) then break end
  end
end
return found
