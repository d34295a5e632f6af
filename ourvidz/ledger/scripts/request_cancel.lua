-- Set the cancel flag of a job that has not ended.
-- Arguments: id.
-- Keys: job.
-- Returns: { 'ok', the record }, or { the reason }: 'missing' or the terminal status.
-- Events: none.
local id = unpack(ARGV, 4)

local job = read_record(id)
if not job then return { 'missing' } end
if job.status ~= 'queued' and job.status ~= 'processing' then return { job.status } end
redis.call('HSET', key('job', id), 'cancel', 1)
return { 'ok', flat_record(id) }
