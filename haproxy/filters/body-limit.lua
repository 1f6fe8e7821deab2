-- Bounds request bodies that come without a length (chunked, or HTTP/2 without Content-Length):
-- counts them as they pass, and ends the request with the first byte too many. Bodies that tell
-- their length are refused by a rule of haproxy.cfg before they begin.
-- The one argument is the limit in bytes.

local BodyLimit = { id = "bounds request bodies", flags = filter.FLT_CFG_FL_HTX }

-- One for each stream; `self` is what the configuration's line has made.
function BodyLimit:new()
    return setmetatable({ seen = 0 }, { __index = self })
end

function BodyLimit:start_analyze(txn, channel)
    if not channel:is_resp() then
        filter.register_data_filter(self, channel)
    end
    return filter.CONTINUE
end

function BodyLimit:http_payload(txn, message)
    local coming = message:input()
    self.seen = self.seen + coming
    -- The end of a body counts as a byte, seen on 2.6.
    if self.seen > self.limit + 1 then
        -- The only way out: a code is taken for a number of bytes.
        error("longer than "..self.limit.." bytes")
    end
    return coming
end

core.register_filter("body-limit", BodyLimit, function(configured, arguments)
    configured.limit = tonumber(arguments[1])
    return configured
end)
