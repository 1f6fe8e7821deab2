'use strict'

// Runs once, while the image is built: installs the packages, unless they came along (scripts/build-image brings them,
// since a build's containers may reach no registry and the base may have no npm).

const { execFileSync } = require('child_process')
const fs = require('fs')

if (!fs.existsSync('node_modules')) {
  execFileSync('npm', ['ci', '--ignore-scripts', '--omit=dev', '--no-audit', '--no-fund'], { stdio: 'inherit' })
}
