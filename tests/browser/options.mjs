// What run.mjs is told; it hands all of it on to page.mjs.

import { parseArgs } from 'node:util'

const text = { type: 'string' }

/** The options; run.mjs says what they mean. */
export const { values: options } = parseArgs({
  options: {
    endpoint: text,
    ca: text,
    answer: { ...text, multiple: true, default: [] },
    hammer: { ...text, multiple: true, default: [] },
    'sign-on': text,
    picture: text,
    wake: { ...text, multiple: true, default: [] },
    work: text,
    screenshots: text,
    limit: { ...text, default: '150' }
  }
})
if (!options.endpoint) throw new Error('--endpoint is missing')

/** The answers that are wanted: which option it was, the status and the URL. */
export const wanted = ['wake', 'answer', 'hammer'].flatMap((option) => options[option].map((value) => {
  const [, status, url] = /^(\d{3})=(.+)$/.exec(value) ?? []
  if (!url) throw new Error(`--${option} ${value}: it takes STATUS=URL`)
  return { option, status: Number(status), url }
}))
