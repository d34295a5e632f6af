-- What every script gets first: the key prefix, the record version, the key names.
-- ARGV: 1 key prefix, 2 the time ('' asks the server), 3 the newest record version this release knows,
-- from 4 on the script's own arguments, '' for an absent one. Times are Unix seconds.

local PREFIX, KNOWN_VERSION = ARGV[1], tonumber(ARGV[3])

local function key(...) return PREFIX .. table.concat({ ... }, ':') end

local function timestamp(seconds) return string.format('%.6f', seconds) end

-- `pcall`: a damaged statistic keeps no job from ending.
local function increment(counter, by) redis.pcall('HINCRBY', key('counters'), counter, by or 1) end
