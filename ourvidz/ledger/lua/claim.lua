local id, run, worker, lease_s, token = unpack(ARGV, 4)
local job = record(id)
if not job or job.run ~= run then return false end
local name, document = key('job', id), redis.call('GET', key('doc', id))
if job.status == 'processing' and job.token == token then return { flat(id), document } end
if job.status ~= 'queued' or job.cancel or tonumber(job.due_at) > now or not document then return false end
local drained = redis.call('HGET', key('worker', worker), 'draining')
if drained or redis.call('SISMEMBER', key('paused'), job.queue) == 1 then
  redis.call('HDEL', name, 'published_at')
  return false
end

local until_ = stamp(now + tonumber(lease_s))
job.attempt = redis.call('HINCRBY', name, 'attempt', 1)
redis.call('HINCRBY', name, 'fence', 1)
redis.call('HSET', name, 'status', 'processing', 'claimed_at', stamp(now), 'worker', worker,
  'lease_until', until_, 'token', token, 'progress', 0)
redis.call('HDEL', name, 'stage', 'step', 'enhancer', 'enhancing_until')
if job.enhancement then redis.call('HSET', name, 'enhancement', 'over') end
job.claimed_at, job.worker, job.stage = stamp(now), worker, nil
redis.call('ZREM', key('queued', job.queue), id)
redis.call('ZADD', key('leases'), until_, id)

local claimed = key('claimed', job.queue)
local highest = tonumber(redis.call('HGET', claimed, job.priority .. ':order') or 0)
redis.call('HSET', claimed, job.priority .. ':at', stamp(now),
  job.priority .. ':order', string.format('%.0f', math.max(highest, tonumber(job.order))))

tell(id, job, 'processing')
state_item(id, job, 'processing', job.attempt)
return { flat(id), document }
