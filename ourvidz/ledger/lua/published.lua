local id, run, token = unpack(ARGV, 4)
local job = record(id)
if not job or job.run ~= run or said_before(token) then return 0 end
redis.call('HSET', key('job', id), 'published_at', stamp(now))
redis.call('HINCRBY', key('job', id), 'publishes', 1)
say(token, 'ok')
return 1
