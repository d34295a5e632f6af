-- Delete a job that has ended and whose callbacks are settled, or whose deletion began when they were.
-- Arguments: id, token.
-- Keys: every key of the job and its events; its places in every index; call.
-- Returns: { 'ok', the deleted record }, or { the reason }: 'missing', 'callback' (one is pending) or the status
--   that forbids it.
-- Events: none; those of the job are deleted.
local id, token = unpack(ARGV, 4)

local CALLERS = { facts = true, outcome = true, user = true, request = true, callback_url = true }

local deleted = memoized(token)
if deleted then return { 'ok', cjson.decode(deleted) } end
local job = read_record(id)
if not job then return { 'missing' } end
if job.status == 'queued' or job.status == 'processing' then return { job.status } end
if not job.deleting and redis.call('ZCARD', key('rows', id)) > 0 then return { 'callback' } end
local fields = flat_record(id)
delete_job(id, job)
-- What answers a repeated call outlives the job, so it has nothing that the caller wrote.
local answer = { 'facts', '{}' }
for i = 1, #fields, 2 do
  if not CALLERS[fields[i]] then
    answer[#answer + 1] = fields[i]
    answer[#answer + 1] = fields[i + 1]
  end
end
memoize(token, cjson.encode(answer))
return { 'ok', fields }
