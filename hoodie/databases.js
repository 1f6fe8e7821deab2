'use strict'

// Knows every open LevelDB, so that a stop can close them: Hoodie itself never does.

const { createRequire } = require('module')

// The copy that the adapter uses; others are about.
const LevelUP = require(['pouchdb-adapter-leveldb', 'pouchdb-adapter-leveldb-core', 'levelup']
  .reduce((from, name) => createRequire(from).resolve(name), __filename))

const opened = new Set()
const open = LevelUP.prototype.open

LevelUP.prototype.open = function (...args) {
  opened.add(this)
  this.once('closed', () => opened.delete(this))
  return open.apply(this, args)
}

exports.close = () => Promise.all([...opened].map((database) => new Promise((resolve) => database.close(resolve))))
