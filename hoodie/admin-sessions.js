'use strict'

// Hoodie salts the admin's sessions at random at each start, so that a start ends them, and forgets to ask whether they are
// over. With a salt that stays the same they live on until the time that each of them carries (14 days). Without
// HAAS_ADMIN_SESSION_SALT nothing is changed.

const { createRequire } = require('module')

const salt = process.env.HAAS_ADMIN_SESSION_SALT
delete process.env.HAAS_ADMIN_SESSION_SALT

if (salt) {
  if (!/^[\da-f]{32}$/.test(salt)) throw new Error('HAAS_ADMIN_SESSION_SALT is no salt')
  // The copy that the server uses.
  const inAdmins = createRequire(['hoodie/package.json', '@hoodie/server', 'pouchdb-admins']
    .reduce((from, name) => createRequire(from).resolve(name), __filename))

  inAdmins('./lib/set').internals.generateSalt = () => salt

  const decode = inAdmins('./lib/utils/couchdb-decode-session-id')
  const { UNAUTHORIZED } = inAdmins('pouchdb-errors')
  const validate = inAdmins('./lib/validate-session')
  require.cache[inAdmins.resolve('./lib/validate-session')].exports = (state, id) => validate(state, id).then(() => {
    // Its end is signed with it.
    if (!(decode(id).timestamp > Date.now() / 1000)) throw UNAUTHORIZED
  })
}
