local id, run, priority, token = unpack(ARGV, 4)
local job = record(id)
if said_before(token) then return 1 end
if not job or job.run ~= run or job.status ~= 'queued' or job.lifted then return 0 end
if tonumber(priority) >= tonumber(job.priority) then return 0 end
redis.call('HSET', key('job', id), 'priority', priority, 'lifted', 1)
redis.call('ZADD', key('queued', job.queue), rank(priority, job.order), id)
say(token, 'ok')
return 1
