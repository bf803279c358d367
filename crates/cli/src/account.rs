//! `anchorhold account create|list` and `anchorhold account key create|rotate|revoke`.

use anchorhold_client::{AdminClient, admin_v1};
use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::context::{ClientArgs, Context};
use crate::output;

/// `anchorhold account`.
#[derive(Args, Debug)]
pub(crate) struct AccountArgs {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: AccountCommand,
}

#[derive(Subcommand, Debug)]
enum AccountCommand {
    /// Create an account and print its first API key, which is shown this once
    Create {
        /// Its unique name: a-z, 0-9 and '-'
        name: String,
        /// Shards to lay it out over, evenly over Earth; 0 shares one with other accounts
        #[arg(long, default_value_t = 0)]
        shards: u32,
        /// Placement class [default: the cluster's]
        #[arg(long, value_name = "CLASS", default_value = "", hide_default_value = true)]
        class: String,
    },
    /// List the accounts
    List,
    /// Make and revoke API keys
    Key {
        #[command(subcommand)]
        command: KeyCommand,
    },
}

#[derive(Subcommand, Debug)]
enum KeyCommand {
    /// Make a second key
    Create {
        /// Name or number of the account
        account: String,
    },
    /// Make a key; of two that there are, the older one is revoked
    Rotate {
        /// Name or number of the account
        account: String,
    },
    /// Revoke a key
    Revoke {
        /// Name or number of the account
        account: String,
        /// The key's id: the part between the first two underscores
        key_id: String,
    },
}

#[derive(Serialize)]
struct AccountView {
    number: u32,
    name: String,
    placement_class: String,
    shards: u32,
    key_ids: Vec<String>,
    create_time: Option<String>,
    /// Only when it was just made.
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
}

#[derive(Serialize)]
struct KeyView {
    account: u32,
    key_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_key_id: Option<String>,
}

/// Runs `anchorhold account`.
///
/// # Errors
/// As the cluster says.
pub(crate) async fn run(args: AccountArgs) -> anyhow::Result<()> {
    let context = Context::resolve(&args.client)?;
    let admin = context.admin()?;
    match args.command {
        AccountCommand::Create { name, shards, class } => {
            let request = admin_v1::CreateAccountRequest {
                name,
                shards,
                placement_class: class,
                ..Default::default()
            };
            let reply = admin.create_account(request).await?;
            let mut view = AccountView::from(reply.account.unwrap_or_default());
            view.api_key = Some(reply.api_key).filter(|key| !key.is_empty());
            output::print(context.output, &view, || view.facts())?;
            eprintln!("keep the key: it is shown this once");
            Ok(())
        }
        AccountCommand::List => list(&context, &admin).await,
        AccountCommand::Key { command } => key(&context, &admin, command).await,
    }
}

async fn list(context: &Context, admin: &AdminClient) -> anyhow::Result<()> {
    let mut request = admin_v1::ListAccountsRequest { page_size: 1_000, ..Default::default() };
    let mut views: Vec<AccountView> = Vec::new();
    loop {
        let page = admin.list_accounts(request.clone()).await?;
        views.extend(page.accounts.into_iter().map(AccountView::from));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    output::print(context.output, &views, || {
        let rows = views.iter().map(|account| {
            [
                account.number.to_string(),
                account.name.clone(),
                account.placement_class.clone(),
                account.shards.to_string(),
                account.key_ids.join(", "),
                account.create_time.clone().unwrap_or_default(),
            ]
        });
        output::table(["NUMBER", "NAME", "CLASS", "SHARDS", "KEYS", "CREATED"], rows)
    })
}

async fn key(context: &Context, admin: &AdminClient, command: KeyCommand) -> anyhow::Result<()> {
    let view = match command {
        KeyCommand::Create { account } => {
            let account = number(admin, &account).await?;
            let request = admin_v1::CreateApiKeyRequest { account, ..Default::default() };
            let reply = admin.create_api_key(request).await?;
            let key_id = reply.key.unwrap_or_default().key_id;
            KeyView { account, key_id, api_key: Some(reply.api_key), revoked_key_id: None }
        }
        KeyCommand::Rotate { account } => {
            let account = number(admin, &account).await?;
            let request = admin_v1::RotateApiKeyRequest { account, ..Default::default() };
            let reply = admin.rotate_api_key(request).await?;
            let key_id = reply.key.unwrap_or_default().key_id;
            let revoked_key_id = Some(reply.revoked_key_id).filter(|key_id| !key_id.is_empty());
            KeyView { account, key_id, api_key: Some(reply.api_key), revoked_key_id }
        }
        KeyCommand::Revoke { account, key_id } => {
            let account = number(admin, &account).await?;
            let request = admin_v1::RevokeApiKeyRequest {
                account,
                key_id: key_id.clone(),
                ..Default::default()
            };
            admin.revoke_api_key(request).await?;
            let revoked_key_id = Some(key_id.clone());
            KeyView { account, key_id, api_key: None, revoked_key_id }
        }
    };
    output::print(context.output, &view, || view.facts())
}

/// The number of an account that is named by number or by name.
async fn number(admin: &AdminClient, account: &str) -> anyhow::Result<u32> {
    if let Ok(number) = account.parse() {
        return Ok(number);
    }
    let by_name = admin_v1::get_account_request::Account::Name(account.to_owned());
    let request = admin_v1::GetAccountRequest { account: Some(by_name) };
    let reply = admin.get_account(request).await;
    let reply = reply.with_context(|| format!("cannot use account {account}"))?;
    Ok(reply.account.unwrap_or_default().number)
}

impl From<admin_v1::Account> for AccountView {
    fn from(account: admin_v1::Account) -> Self {
        Self {
            number: account.number,
            name: account.name,
            placement_class: account.placement_class,
            shards: account.shards,
            key_ids: account.api_keys.into_iter().map(|key| key.key_id).collect(),
            create_time: account.create_time.map(|time| time.to_string()),
            api_key: None,
        }
    }
}

impl AccountView {
    fn facts(&self) -> String {
        output::facts(&[
            ("number", self.number.to_string()),
            ("name", self.name.clone()),
            ("class", self.placement_class.clone()),
            ("shards", self.shards.to_string()),
            ("API key", self.api_key.clone().unwrap_or_else(|| "(made before)".to_owned())),
        ])
    }
}

/// A key as it is shown, or what to do where an earlier try has made it.
fn shown(api_key: &str) -> String {
    if api_key.is_empty() {
        "(made by a try whose answer got lost: revoke it and create another)".to_owned()
    } else {
        api_key.to_owned()
    }
}

impl KeyView {
    fn facts(&self) -> String {
        let mut facts = vec![("account", self.account.to_string())];
        if let Some(api_key) = &self.api_key {
            facts.push(("key id", self.key_id.clone()));
            facts.push(("API key", shown(api_key)));
        }
        facts.extend(self.revoked_key_id.clone().map(|key_id| ("revoked", key_id)));
        output::facts(&facts)
    }
}
