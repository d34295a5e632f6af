-- Claim a queued job: compare-and-set queued -> processing, attempt + 1, a new fence, a lease. On a paused queue
-- or for a draining or failed worker the job is marked as unpublished instead, so that the sweep publishes it again.
-- A document of a newer release is left alone for some seconds, then the sweep publishes the job again.
-- Arguments: id, run, worker, lease_s, token (the same token gets the same claim again, its lease from now),
--   document_version (the newest that this release reads), beside ('' or the job that leads the batch which
--   this one joins: both attempts are marked as shared).
-- Keys: job, doc, worker, paused, queued, leases, claimed, fence, attempt_folders, and those of add_event and the stream.
-- Returns: { the record, the job document }, or false when the claim is refused.
-- Events: `processing`; a `state` item.
local id, run, worker, lease_s, token, document_version, beside = unpack(ARGV, 4)
local NEWER_DELAY_S = 10

local job = read_record(id)
if not job or job.run ~= run then return false end
local name, document = key('job', id), redis.call('GET', key('doc', id))
local lease_until = timestamp(now + tonumber(lease_s))
if job.status == 'processing' and job.token == token then
  set_lease(id, lease_until)
  return { flat_record(id), document }
end
if job.status ~= 'queued' or job.cancel or tonumber(job.due_at) > now or not document then return false end
local refusals = redis.call('HMGET', key('worker', worker), 'draining', 'failed')
if refusals[1] or refusals[2] or redis.call('SISMEMBER', key('paused'), job.queue) == 1 then
  redis.call('HDEL', name, 'published_at')
  return false
end
if version_of(document) > tonumber(document_version) then
  redis.call('HSET', name, 'due_at', timestamp(now + NEWER_DELAY_S))
  redis.call('HDEL', name, 'published_at')
  return false
end

job.attempt = redis.call('HINCRBY', name, 'attempt', 1)
local fence = next_fence(job)
redis.call('HSET', name, 'status', 'processing', 'fence', fence, 'claimed_at', timestamp(now),
  'worker', worker, 'token', token, 'progress', 0)
redis.call('HDEL', name, 'stage', 'step', 'enhancer', 'enhancing_until', 'shared')
if beside ~= '' then
  redis.call('HSET', name, 'shared', 1)
  local leader = redis.call('HMGET', key('job', beside), 'status', 'worker')
  if leader[1] == 'processing' and leader[2] == worker then redis.call('HSET', key('job', beside), 'shared', 1) end
end
if job.enhancement then redis.call('HSET', name, 'enhancement', 'over') end
job.claimed_at, job.worker, job.stage = timestamp(now), worker, nil
redis.call('ZREM', key('queued', job.queue), id)
set_lease(id, lease_until)
track_files(id, job, fence, token)

-- The latest claim and the highest order of this queue and priority: the sweep finds overtaken jobs by them. A job
-- that joins another one may pass those before it, whose messages are not lost.
local claimed = key('claimed', job.queue)
redis.call('HSET', claimed, job.priority .. ':at', timestamp(now))
if beside == '' then
  local highest = tonumber(redis.call('HGET', claimed, job.priority .. ':order') or 0) or 0
  redis.call('HSET', claimed, job.priority .. ':order',
    string.format('%.0f', math.max(highest, tonumber(job.order))))
end

add_event(id, job, 'processing')
add_state_item(id, job, 'processing', job.attempt)
return { flat_record(id), document }
