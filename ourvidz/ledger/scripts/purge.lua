-- Delete what is kept no longer: oversized documents, delivered events, jobs that ended long ago.
-- Arguments: older_than_s (jobs), limit (of each kind), delivered_s (events).
-- Keys: documents, doc, letters:delivered, letters:dead, event, finished, index:all, quarantine, and every key of a deleted job.
-- Returns: the number of deleted jobs.
-- Events: none; those of deleted jobs are deleted.
local older_than_s, limit, delivered_s = unpack(ARGV, 4)
limit = tonumber(limit)

for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('documents'), '-inf', timestamp(now), 'LIMIT', 0, limit)) do
  redis.call('DEL', key('doc', id))
  redis.call('ZREM', key('documents'), id)
end
local before = timestamp(now - tonumber(delivered_s))
local delivered = redis.call('ZRANGEBYSCORE', key('letters', 'delivered'), '-inf', before, 'LIMIT', 0, limit)
for _, event in ipairs(delivered) do delete_event(event) end

-- A job that was refused has no record with which its dead letter would be deleted.
local ended_before = timestamp(now - tonumber(older_than_s))
for _, event in ipairs(redis.call('ZRANGEBYSCORE', key('letters', 'dead'), '-inf', ended_before, 'LIMIT', 0, limit)) do
  if redis.call('HEXISTS', key('event', event), 'refused') == 1 then delete_event(event) end
end

-- Jobs whose callback is still pending stay, so more candidates than the limit are read.
local deleted, finished = 0, key('finished')
for _, id in ipairs(redis.call('ZRANGEBYSCORE', finished, '-inf', ended_before, 'LIMIT', 0, 5 * limit)) do
  if deleted == limit then break end
  if redis.call('ZCARD', key('rows', id)) == 0 then
    local job = read_hash(key('job', id))
    if not job then
      redis.call('ZREM', finished, id)
      redis.call('ZREM', key('index:all'), id)
    elseif (tonumber(job.v) or 0) <= KNOWN_VERSION and not job.deleting then
      delete_job(id, job)
      deleted = deleted + 1
    elseif not job.deleting then
      quarantine_job(id, 'finished', 'it has a record of version ' .. job.v)
    end
  end
end
return deleted
