// An owner opens a link that signs on, and uses the dashboard.

/**
 * Opens the link in a profile; returns what the dashboard shows, and what a second opening does.
 *
 * `picture` is a file for the dashboard's picture; `tell` hears of each step, and of the page that it is on.
 */
export async function signOn (profile, link, picture, tell) {
  const page = await profile.newPage()
  await page.setViewportSize({ width: 1000, height: 400 })
  tell('the link is opened', page)
  const requests = []
  page.on('request', (request) => requests.push({ url: request.url(), referrer: request.headers().referer }))
  await page.goto(link)
  tell('it ends on the dashboard', page)
  await page.waitForURL('**/hoodie/admin/**')
  await page.waitForLoadState('networkidle')
  const seen = { url: page.url() }
  seen.text = await page.evaluate(() => document.body.innerText)
  seen.kept = await page.evaluate(() => JSON.parse(localStorage.getItem('account_admin')))
  seen.history = await page.evaluate(() => history.length)
  seen.referrer = await page.evaluate(() => document.referrer)
  seen.leaks = requests.filter(({ referrer }) => referrer?.includes('token'))

  tell('the owner adds a user', page)
  const [name, password] = await page.locator('input').all()
  await name.fill('carol@example.com')
  await password.fill('password of carol')
  await page.getByRole('button', { name: 'Add user' }).click()
  // Hoodie shows the new account; back there is the list of all.
  await page.getByText('username: carol@example.com').waitFor()
  await page.getByText('Back to account list').click()
  await page.getByText('Hello, admin!').waitFor()
  await page.getByText('carol@example.com').waitFor()
  seen.accounts = await page.evaluate(async (id) => {
    const answer = await fetch('/hoodie/account/api/accounts', { headers: { authorization: `Session ${id}` } })
    return { status: answer.status, usernames: (await answer.json()).data.map(({ attributes }) => attributes.username) }
  }, seen.kept.session.id)
  if (picture) await page.screenshot({ path: picture })

  tell('the same link is opened once more', page)
  const again = await page.goto(link)
  seen.again = { status: again.status(), text: await page.evaluate(() => document.body.innerText) }
  return seen
}
