//! Decisions about questions and answers. Pure: what is known goes in, what is to be done comes out.

mod local;

use super::addresses::special_use;
use super::answer::{Data, Findings};
use super::config::Lifetimes;
use super::message::{Body, BodyBuilder, ExtendedError, ResponseCode, record_type};
use super::names::{NamePolicy, NameVerdict, Opening};
use super::observer::Reason;
use crate::egress::grant::Grant;
use portcullis_common::endpoint::DnsName;
use portcullis_common::event::Verdict;
use portcullis_common::policy::EgressMode;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Addresses of one answer that are passed on and opened; DNS answers over UDP hold fewer.
const MAXIMUM_ADDRESSES: usize = 64;

/// Types that are forwarded for names below a wildcard, where the job chooses the name: addresses and the places of services.
/// TXT, NULL and their like would carry data back in bulk.
const WILDCARD_TYPES: &[u16] = &[record_type::A, record_type::AAAA, record_type::SRV];

/// Types that are forwarded for names that the policy lists exactly: what programs other than name servers ask for.
const EXACT_TYPES: &[u16] = &[
    record_type::A,
    record_type::AAAA,
    record_type::CAA,
    record_type::CNAME,
    record_type::MX,
    record_type::NS,
    record_type::PTR,
    record_type::SOA,
    record_type::SRV,
    record_type::TXT,
];

/// What judging needs to know beside the question.
#[derive(Debug)]
pub struct Judge {
    /// The endpoints.
    pub names: NamePolicy,
    /// Whether names off the list are blocked.
    pub mode: EgressMode,
    /// The policy's name.
    pub policy: String,
    /// `search` domains, lower case, without dots around.
    pub search_domains: Vec<String>,
    /// Bounds of TTLs and grants.
    pub lifetimes: Lifetimes,
}

/// What to do about a question.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Answer without asking anybody.
    Answer(Local),
    /// Ask upstream.
    Ask(Ask),
}

/// An answer that needs nobody else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Local {
    /// The verdict to record.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The answer.
    pub body: Body,
}

/// Why and how a question may be asked upstream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ask {
    /// `Allowed`, or `WouldBlock` in audit mode.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// What the name opens; empty when it goes through only because the policy audits.
    pub openings: Vec<Opening>,
    /// The name below which the job chose the name freely.
    pub wildcard: Option<Arc<str>>,
}

/// What an upstream's answer comes to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resolved {
    /// The verdict to record.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// What to open before the answer leaves.
    pub grants: Vec<Grant>,
    /// The addresses in the answer.
    pub answered: Vec<IpAddr>,
    /// The names between the question and the addresses.
    pub cname_chain: Vec<String>,
    /// The answer.
    pub body: Body,
    /// How long it may be remembered.
    pub lifetime: Duration,
}

impl From<Local> for Resolved {
    /// Not to be remembered.
    fn from(Local { verdict, reason, body }: Local) -> Self {
        Self {
            verdict,
            reason,
            grants: Vec::new(),
            answered: Vec::new(),
            cname_chain: Vec::new(),
            body,
            lifetime: Duration::ZERO,
        }
    }
}

impl Judge {
    /// Judges a question: `name` is its checked host name. `name_of` tells which name opened an address, for reverse
    /// look-ups.
    pub fn question(
        &self,
        name: &str,
        query_type: u16,
        question_length: usize,
        name_of: impl Fn(IpAddr) -> Option<Arc<str>>,
    ) -> Decision {
        match self.names.judge(name) {
            NameVerdict::Denied(rule) => Decision::Answer(self.blocked(Reason::Denied(rule))),
            NameVerdict::Allowed { openings, wildcard } => {
                self.allowed(query_type, openings, wildcard)
            }
            NameVerdict::NotListed => local::answer(name, query_type, question_length, name_of)
                .map_or_else(|| self.not_listed(name, query_type), Decision::Answer),
        }
    }

    fn allowed(
        &self,
        query_type: u16,
        openings: Vec<Opening>,
        wildcard: Option<Arc<str>>,
    ) -> Decision {
        let Some(rule) = openings.first().map(|opening| Arc::clone(&opening.rule)) else {
            return Decision::Answer(self.blocked(Reason::NotListed));
        };
        if is_service_binding(query_type) {
            // Their address hints would be used without a grant; without them clients ask for A and AAAA.
            return Decision::Answer(nothing(ResponseCode::NoError, Reason::Allowed(rule)));
        }
        let types = if wildcard.is_some() { WILDCARD_TYPES } else { EXACT_TYPES };
        let may_ask =
            types.contains(&query_type) || (self.mode == EgressMode::Audit && !is_meta(query_type));
        if !may_ask {
            return Decision::Answer(self.refused(Reason::QueryType));
        }
        let listed = types.contains(&query_type);
        Decision::Ask(Ask {
            verdict: if listed { Verdict::Allowed } else { Verdict::WouldBlock },
            reason: if listed { Reason::Allowed(rule) } else { Reason::QueryType },
            openings,
            wildcard,
        })
    }

    fn not_listed(&self, name: &str, query_type: u16) -> Decision {
        let searched = self.is_search_of_allowed(name);
        let reason = if searched { Reason::SearchDomain } else { Reason::NotListed };
        if self.mode == EgressMode::Block {
            return Decision::Answer(if searched {
                nothing(ResponseCode::NxDomain, reason)
            } else {
                self.blocked(reason)
            });
        }
        let verdict = if searched { Verdict::Allowed } else { Verdict::WouldBlock };
        if is_meta(query_type) {
            return Decision::Answer(self.refused(Reason::QueryType));
        }
        if is_service_binding(query_type) {
            let body = Body::empty(ResponseCode::NoError, None);
            return Decision::Answer(Local { verdict, reason, body });
        }
        Decision::Ask(Ask { verdict, reason, openings: Vec::new(), wildcard: None })
    }

    /// Whether `name` is an allowed name with a search domain appended.
    fn is_search_of_allowed(&self, name: &str) -> bool {
        self.search_domains.iter().any(|domain| {
            name.strip_suffix(domain.as_str())
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| matches!(self.names.judge(rest), NameVerdict::Allowed { .. }))
        })
    }

    /// The answer to a name with unusual bytes.
    pub fn unusual_name(&self) -> Local {
        self.refused(Reason::UnusualName)
    }

    /// The refusal of a question for `reason`.
    pub fn refused(&self, reason: Reason) -> Local {
        let body = Body::empty(ResponseCode::Refused, Some(self.explanation(&reason)));
        Local { verdict: Verdict::Blocked, reason, body }
    }

    /// The answer to a container's question that another job does not allow.
    pub fn not_by_all(&self) -> Local {
        self.blocked(Reason::NotAllowedByAll)
    }

    fn blocked(&self, reason: Reason) -> Local {
        let body = Body::empty(ResponseCode::NxDomain, Some(self.explanation(&reason)));
        Local { verdict: Verdict::Blocked, reason, body }
    }

    fn explanation(&self, reason: &Reason) -> ExtendedError {
        let text = format!("policy {}: {reason}", self.policy);
        ExtendedError { code: ExtendedError::BLOCKED, text: text.into() }
    }

    /// The answer when it could not be found out: upstream failed, or the address could not be opened. Never remembered.
    pub fn failed(&self, code: u16, reason: Reason, verdict: Verdict) -> Resolved {
        let error = ExtendedError { code, text: reason.to_string().into() };
        let body = Body::empty(ResponseCode::ServFail, Some(error));
        Local { verdict, reason, body }.into()
    }

    /// Judges what was found upstream about `name`.
    pub fn answer(
        &self,
        name: &str,
        query_type: u16,
        question_length: usize,
        ask: &Ask,
        findings: &Findings,
    ) -> Resolved {
        let cname_chain: Vec<String> =
            findings.chain.iter().map(|alias| alias.target.clone()).collect();
        for alias in &findings.chain {
            if let NameVerdict::Denied(rule) = self.names.judge(&alias.target) {
                let reason = Reason::Denied(rule);
                return Resolved {
                    verdict: Verdict::Blocked,
                    grants: Vec::new(),
                    answered: Vec::new(),
                    cname_chain,
                    body: Body::empty(ResponseCode::NxDomain, Some(self.explanation(&reason))),
                    lifetime: self.negative_lifetime(findings),
                    reason,
                };
            }
        }
        let (addresses, withheld) = self.sort_addresses(findings);
        let mut verdict = ask.verdict;
        let mut reason = ask.reason.clone();
        let mut extended_error = None;
        if !withheld.is_empty()
            && let Reason::Allowed(rule) = &ask.reason
        {
            reason = Reason::SpecialUse { rule: Arc::clone(rule), withheld: withheld.clone() };
            extended_error = Some(self.explanation(&reason));
            verdict = self.off_policy();
        }
        let keeps_withheld = self.mode == EgressMode::Audit;
        let kept: Vec<(IpAddr, u32)> = findings
            .records
            .iter()
            .filter_map(|(data, ttl)| match data {
                Data::Address(address) => Some((*address, *ttl)),
                Data::Other(_) => None,
            })
            .filter(|(address, _)| keeps_withheld || addresses.contains(address))
            .take(MAXIMUM_ADDRESSES)
            .collect();
        let lifetime = if findings.records.is_empty() || (kept.is_empty() && !withheld.is_empty()) {
            self.negative_lifetime(findings)
        } else {
            self.positive_lifetime(findings)
        };
        let body =
            self.build(question_length, query_type, findings, &kept, lifetime, extended_error);
        let grants = self.grants(name, ask, findings, &addresses, lifetime);
        Resolved {
            verdict,
            reason,
            grants,
            cname_chain,
            answered: kept.into_iter().map(|(address, _)| address).collect(),
            body,
            lifetime,
        }
    }

    /// What happens to what the policy does not allow.
    fn off_policy(&self) -> Verdict {
        match self.mode {
            EgressMode::Audit => Verdict::WouldBlock,
            EgressMode::Block => Verdict::Blocked,
        }
    }

    /// The addresses that may be opened, and those of special use that may not.
    fn sort_addresses(&self, findings: &Findings) -> (Vec<IpAddr>, Vec<(IpAddr, &'static str)>) {
        let mut ordinary = Vec::new();
        let mut withheld = Vec::new();
        for (data, _) in &findings.records {
            let Data::Address(address) = data else { continue };
            match special_use(*address) {
                Some(usage) if !self.names.names_address(*address) => {
                    withheld.push((*address, usage));
                }
                _ => ordinary.push(*address),
            }
            if ordinary.len() + withheld.len() == MAXIMUM_ADDRESSES {
                break;
            }
        }
        (ordinary, withheld)
    }

    fn grants(
        &self,
        name: &str,
        ask: &Ask,
        findings: &Findings,
        addresses: &[IpAddr],
        lifetime: Duration,
    ) -> Vec<Grant> {
        let Some(dns_name) = DnsName::new(name).ok() else { return Vec::new() };
        let chain: Vec<DnsName> =
            findings.chain.iter().filter_map(|alias| DnsName::new(&alias.target).ok()).collect();
        let lifetime = lifetime.max(self.lifetimes.grant_floor) + self.lifetimes.grant_grace;
        let mut grants = Vec::new();
        for &address in addresses {
            for opening in &ask.openings {
                for ports in self.names.openings_at(opening, address) {
                    let known = grants.iter().any(|grant: &Grant| {
                        grant.address == address
                            && grant.protocol == opening.protocol
                            && grant.ports == ports
                    });
                    if known {
                        continue;
                    }
                    grants.push(Grant {
                        address,
                        protocol: opening.protocol,
                        ports,
                        name: dns_name.clone(),
                        cname_chain: chain.clone(),
                        rule: Arc::clone(&opening.rule),
                        lifetime,
                    });
                }
            }
        }
        grants
    }

    fn positive_lifetime(&self, findings: &Findings) -> Duration {
        let records = findings.records.iter().map(|(_, ttl)| *ttl);
        let aliases = findings.chain.iter().map(|alias| alias.ttl);
        let least = records.chain(aliases).min().unwrap_or(0);
        Duration::from_secs(least.into()).min(self.lifetimes.maximum_ttl)
    }

    fn negative_lifetime(&self, findings: &Findings) -> Duration {
        let zone = findings.zone.as_ref().map_or(0, |zone| zone.ttl);
        let least = findings.chain.iter().map(|alias| alias.ttl).fold(zone, u32::min);
        Duration::from_secs(least.into()).min(self.lifetimes.maximum_negative_ttl)
    }

    /// Builds the answer. Every TTL is the lifetime of the whole, so that no part outlives what is remembered.
    fn build(
        &self,
        question_length: usize,
        query_type: u16,
        findings: &Findings,
        kept: &[(IpAddr, u32)],
        lifetime: Duration,
        extended_error: Option<ExtendedError>,
    ) -> Body {
        // Lifetimes are cut to `maximum_ttl`.
        let ttl = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        let mut builder = BodyBuilder::new(question_length);
        let mut fits = findings.chain.iter().all(|alias| builder.alias(&alias.target, ttl));
        for (address, _) in kept {
            fits = fits && builder.address(*address, ttl);
        }
        for (data, _) in &findings.records {
            if let Data::Other(data) = data {
                fits = fits && builder.record(query_type, ttl, data);
            }
        }
        if let Some(zone) = &findings.zone
            && findings.records.is_empty()
        {
            fits = fits && builder.negative(&zone.zone, ttl, &zone.data);
        }
        if !fits {
            tracing::debug!(
                policy = self.policy,
                "an upstream's answer was cut to what we pass on"
            );
        }
        let code =
            if findings.name_missing { ResponseCode::NxDomain } else { ResponseCode::NoError };
        builder.build(code, extended_error)
    }
}

/// Types that tell how to reach a service and may carry addresses (RFC 9460).
fn is_service_binding(query_type: u16) -> bool {
    matches!(query_type, record_type::SVCB | record_type::HTTPS)
}

/// Types that are no data: transfers, ANY and the like, and the reserved 0.
fn is_meta(query_type: u16) -> bool {
    query_type == 0
        || query_type == record_type::OPT
        || (record_type::FIRST_META..=record_type::LAST_META).contains(&query_type)
}

/// A local answer without records.
fn nothing(code: ResponseCode, reason: Reason) -> Local {
    Local { verdict: Verdict::Allowed, reason, body: Body::empty(code, None) }
}
