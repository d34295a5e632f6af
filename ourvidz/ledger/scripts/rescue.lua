-- Take a job back from a worker that is lost, and queue it again, due now. A job whose caller has read the
-- beginning of the answer is not taken back. An attempt that shared a batch does not count, because any of its
-- texts may have been the cause: from then on the job runs alone.
-- Arguments: id, run, fence, token, counted ('1': failures[WORKER_LOST] + 1; '0': the attempt does not count),
--   if_expired ('1': only when its lease has ended by now), call.
-- Keys: job, fence, leases, queued, stream, counters, call.
-- Returns: 1, or 0 when the claim is another one, its lease has not ended, or the job cannot be repeated.
-- Events: a `state` item.
local id, run, fence, token, counted, if_expired, call = unpack(ARGV, 4)

local job = read_record(id)
if memoized(call) then return 1 end
if not holds_claim(job, run, fence, token) or (job.one_shot and job.streamed) then return 0 end
if if_expired == '1' and not lease_ended(job) then return 0 end
if counted == '1' then redis.call('HSET', key('job', id), 'alone', 1) end
if counted == '1' and not job.shared then
  redis.call('HINCRBY', key('job', id), 'f:WORKER_LOST', 1)
  increment('attempts.released.WORKER_LOST')
else
  job.attempt = redis.call('HINCRBY', key('job', id), 'attempt', -1)
end
requeue(id, job, now)
add_state_item(id, job, 'queued', job.attempt)
memoize(call, 'ok')
return 1
