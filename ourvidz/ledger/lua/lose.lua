local id, fence, counted, token = unpack(ARGV, 4)
local job = record(id)
if said_before(token) then return 1 end
if not job or not holds(job, job.run, fence) or (job.one_shot and job.streamed) then return 0 end
if counted == '1' then
  redis.call('HINCRBY', key('job', id), 'f:WORKER_LOST', 1)
  count('attempts.released.WORKER_LOST')
else
  job.attempt = redis.call('HINCRBY', key('job', id), 'attempt', -1)
end
requeue(id, job, now)
state_item(id, job, 'queued', job.attempt)
say(token, 'ok')
return 1
