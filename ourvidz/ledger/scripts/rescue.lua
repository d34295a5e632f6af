-- Take a job back from a worker that is lost, and queue it again, due now. A job whose caller has read the
-- beginning of the answer is not taken back.
-- Arguments: id, fence, counted ('1': failures[WORKER_LOST] + 1; '0': the attempt does not count), token.
-- Keys: job, leases, queued, stream, counters, call.
-- Returns: 1, or 0 when the fence is lost or the job cannot be repeated.
-- Events: a `state` item.
local id, fence, counted, token = unpack(ARGV, 4)

local job = read_record(id)
if memoized(token) then return 1 end
if not job or not holds_claim(job, job.run, fence) or (job.one_shot and job.streamed) then return 0 end
if counted == '1' then
  redis.call('HINCRBY', key('job', id), 'f:WORKER_LOST', 1)
  increment('attempts.released.WORKER_LOST')
else
  job.attempt = redis.call('HINCRBY', key('job', id), 'attempt', -1)
end
requeue(id, job, now)
add_state_item(id, job, 'queued', job.attempt)
memoize(token, 'ok')
return 1
