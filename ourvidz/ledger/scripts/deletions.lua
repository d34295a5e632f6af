-- Find the jobs whose deletion began long ago and has not ended, longest ago first. Ids of other jobs are removed: a
-- former release deletes a record and leaves its id here, or runs the job again, which then keeps its files.
-- Arguments: older_than_s, limit.
-- Keys: deleting, job.
-- Returns: job ids.
-- Events: none.
local older_than_s, limit = unpack(ARGV, 4)

local before, ids = timestamp(now - tonumber(older_than_s)), {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('deleting'), '-inf', before, 'LIMIT', 0, limit)) do
  -- `pcall`: a key that holds no record must not hide the others.
  local read = redis.pcall('HMGET', key('job', id), 'deleting', 'status')
  local runs = read[2] == 'queued' or read[2] == 'processing'
  if read[1] and not runs then
    ids[#ids + 1] = id
  else
    if runs then redis.call('HDEL', key('job', id), 'deleting') end
    redis.call('ZREM', key('deleting'), id)
  end
end
return ids
