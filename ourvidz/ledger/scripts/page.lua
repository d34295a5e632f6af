-- Find jobs of an index by type and status, newest first. A job without a record passes: it is to leave the index.
-- Arguments: index (its key without the prefix), below ('' or the order that all found ones are below), job_type, status
--   (each '' for any), scan (jobs that are looked at), limit (jobs that are found).
-- Keys: the index, job.
-- Returns: the number of jobs that were looked at; the order of the last one, '' at the end of the index; then id and
--   order of each that was found.
-- Events: none.
local index, below, job_type, status, scan, limit = unpack(ARGV, 4)

local top = below == '' and '+inf' or '(' .. below
local entries = redis.call('ZREVRANGEBYSCORE', key(index), top, '-inf', 'WITHSCORES', 'LIMIT', 0, scan)
local found = {}
for i = 1, #entries, 2 do
  local id, order = entries[i], entries[i + 1]
  local job = redis.pcall('HMGET', key('job', id), 'type', 'status')
  local passes = not job.err and (not job[1]
    or (job_type == '' or job[1] == job_type) and (status == '' or job[2] == status))
  if passes then
    found[#found + 1] = id
    found[#found + 1] = order
    if #found >= 2 * tonumber(limit) then return { (i + 1) / 2, order, unpack(found) } end
  end
end
local ended = #entries < 2 * tonumber(scan)
return { #entries / 2, ended and '' or entries[#entries], unpack(found) }
