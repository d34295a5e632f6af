-- Give a key a new secret. The one before it stays valid for a while; an older one ends now.
-- Arguments: prefix, id, hash, grace_s.
-- Keys: apikey.
-- Returns: 1; 0 when there is no such key; -1 when it is revoked or has expired.
-- Events: none.
local prefix, id, hash, grace_s = unpack(ARGV, 1)

local record = prefix .. 'apikey:' .. id
local fields = redis.call('HMGET', record, 'hash', 'revoked_at', 'expires_at')
local now = tonumber(redis.call('TIME')[1])
if redis.call('EXISTS', record) == 0 then return 0 end
if fields[1] == hash then return 1 end -- the same call again, after a lost reply
if fields[2] or not fields[1] or (fields[3] and tonumber(fields[3]) <= now) then return -1 end
-- A deletion first: a full server refuses no script that begins with one, and the old secret may have leaked.
redis.call('HDEL', record, 'previous_hash', 'previous_until')
if tonumber(grace_s) > 0 then
  redis.call('HSET', record, 'previous_hash', fields[1], 'previous_until', now + tonumber(grace_s))
end
redis.call('HSET', record, 'hash', hash, 'rotated_at', now)
return 1
