-- Read the quarantined jobs that were checked longest ago.
-- Arguments: older_than_s (since the last check), limit.
-- Keys: quarantine, quarantine_reasons.
-- Returns: { id, time of the last check, reason } for each.
-- Events: none.
local older_than_s, limit = unpack(ARGV, 4)

local before, answer = timestamp(now - tonumber(older_than_s)), {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('quarantine'), '-inf', before, 'LIMIT', 0, limit)) do
  local checked_at = redis.call('ZSCORE', key('quarantine'), id)
  answer[#answer + 1] = { id, checked_at, redis.call('HGET', key('quarantine_reasons'), id) or '' }
end
return answer
