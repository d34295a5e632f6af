local older_than_s, limit, letter_s = unpack(ARGV, 4)
limit = tonumber(limit)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('documents'), '-inf', stamp(now), 'LIMIT', 0, limit)) do
  redis.call('DEL', key('doc', id))
  redis.call('ZREM', key('documents'), id)
end
local old = stamp(now - tonumber(letter_s))
local letters = key('letters', 'delivered')
for _, event in ipairs(redis.call('ZRANGEBYSCORE', letters, '-inf', old, 'LIMIT', 0, limit)) do
  forget_event(event)
end

-- Jobs whose callback is still pending stay where they are, so look a little further than the limit.
local forgotten, finished = 0, key('finished')
local ripe = redis.call('ZRANGEBYSCORE', finished, '-inf', stamp(now - tonumber(older_than_s)), 'LIMIT', 0, 5 * limit)
for _, id in ipairs(ripe) do
  if forgotten == limit then break end
  if redis.call('ZCARD', key('rows', id)) == 0 then
    local job = record(id)
    if job then
      forget(id, job)
      forgotten = forgotten + 1
    else
      redis.call('ZREM', finished, id)
      redis.call('ZREM', key('index:all'), id)
    end
  end
end
return forgotten
