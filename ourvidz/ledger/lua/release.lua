local id, run, fence, code, due_in_s, token = unpack(ARGV, 4)
local job = record(id)
if said_before(token) then return 1 end
if not holds(job, run, fence) then return 0 end
redis.call('HINCRBY', key('job', id), 'f:' .. code, 1)
requeue(id, job, now + tonumber(due_in_s))
state_item(id, job, 'queued', job.attempt)
count('attempts.released.' .. code)
say(token, 'ok')
return 1
